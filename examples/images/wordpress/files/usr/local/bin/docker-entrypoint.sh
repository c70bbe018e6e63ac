#!/bin/sh
# Prepares /var/www/html and starts the given command, with the contract of the official image: an empty
# document root receives WordPress; a missing wp-config.php is written when a WORDPRESS_ variable is set.
#
# It waits for no database: WordPress itself answers with an error page until there is one. Existing files are
# never overwritten. The command replaces this script (PID 1), so that signals reach it.
set -eu

source=/usr/src/wordpress

note() { printf '%s [entrypoint] %s\n' "$(date -u +%FT%TZ)" "$*" >&2; }

copy_wordpress() {
    note "copying WordPress to $PWD"
    # index.php last: it is what says that the copy is complete. The source belongs to www-data, and so does the copy.
    tar -C "$source" --exclude=./index.php --exclude=./wp-config-docker.php -cf - . | tar --skip-old-files -xf -
    cp -p "$source/index.php" index.php
}

# Each "put your unique phrase here" becomes a phrase of its own.
write_config() {
    note "writing wp-config.php"
    awk '
        /put your unique phrase here/ {
            "head -c 64 /dev/urandom | sha256sum" | getline phrase
            close("head -c 64 /dev/urandom | sha256sum")
            sub(/put your unique phrase here/, substr(phrase, 1, 64))
        }
        { print }
    ' "$source/wp-config-docker.php" >wp-config.php.new
    if [ "$(id -u)" = 0 ]; then chown www-data:www-data wp-config.php.new; fi
    mv wp-config.php.new wp-config.php
}

case ${1-} in
apache2*)
    if [ ! -e index.php ] || [ ! -e wp-includes/version.php ]; then copy_wordpress; fi
    if [ ! -s wp-config.php ] && env | grep -q '^WORDPRESS_'; then write_config; fi
    ;;
esac
exec "$@"
