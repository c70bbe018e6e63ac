#!/bin/sh
# Starts MariaDB, with the environment contract of the official image: on an empty data directory it first
# makes the system tables, the root account, and the database and user that were asked for.
#
# The server that listens on the network starts only after initialisation ended; an initialisation that was cut
# off leaves a marker and is begun anew. The server replaces this script (PID 1), so that signals reach it.
set -eu

datadir=/var/lib/mysql
socket=/run/mysqld/mysqld.sock
marker=$datadir/.initialising

note() { printf '%s [entrypoint] %s\n' "$(date -u +%FT%TZ)" "$*" >&2; }
fail() { note "error: $*"; exit 1; }

# The setting MARIADB_$1 or MYSQL_$1, or the content of the file that MARIADB_$1_FILE or MYSQL_$1_FILE names.
setting() {
    for prefix in MARIADB MYSQL; do
        eval "plain=\${${prefix}_$1-}; file=\${${prefix}_$1_FILE-}"
        # shellcheck disable=SC2154 # set by the eval above
        [ -z "$plain" ] || [ -z "$file" ] || fail "both ${prefix}_$1 and ${prefix}_$1_FILE are set; choose one"
        [ -z "$file" ] || { cat "$file"; return; }
        [ -z "$plain" ] || { printf %s "$plain"; return; }
    done
}

# $1 as the inside of a quoted SQL string; as the inside of a quoted SQL name.
sql_text() { printf %s "$1" | sed "s/\\\\/\\\\\\\\/g; s/'/''/g"; }
# shellcheck disable=SC2016 # backquotes of SQL
sql_name() { printf %s "$1" | sed 's/`/``/g'; }

random_password() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; }

read_settings() {
    root_password=$(setting ROOT_PASSWORD)
    root_host=$(setting ROOT_HOST)
    database=$(setting DATABASE)
    user=$(setting USER)
    password=$(setting PASSWORD)
    random_root=$(setting RANDOM_ROOT_PASSWORD)
    empty_root=$(setting ALLOW_EMPTY_ROOT_PASSWORD)$(setting ALLOW_EMPTY_PASSWORD)

    [ -n "$root_password$random_root$empty_root" ] || fail "the database is not initialised and no root password is given:" \
        "set one of MARIADB_ROOT_PASSWORD, MARIADB_ALLOW_EMPTY_ROOT_PASSWORD, MARIADB_RANDOM_ROOT_PASSWORD"
    if [ -n "$user" ] && [ -z "$password" ]; then fail "MARIADB_USER is set without MARIADB_PASSWORD"; fi
    [ "$user" != root ] || fail "MARIADB_USER is root; use MARIADB_ROOT_PASSWORD for the root account"
    if [ -n "$random_root" ]; then
        root_password=$(random_password)
        note "GENERATED ROOT PASSWORD: $root_password"
    fi
}

# Not echo: that of sh changes backslashes.
statement() { printf '%s\n' "$1"; }

accounts() {
    secret=$(sql_text "$root_password")
    statement "SET @@SESSION.SQL_LOG_BIN = 0;"
    statement "SET @@SESSION.SQL_MODE = REPLACE(@@SESSION.SQL_MODE, 'NO_BACKSLASH_ESCAPES', '');"
    health_password=$(random_password)
    printf '[client]\nuser=healthcheck\npassword=%s\n' "$health_password" >"$datadir/.my-healthcheck.cnf"
    chmod 600 "$datadir/.my-healthcheck.cnf"
    for host in 127.0.0.1 ::1 localhost; do
        statement "CREATE USER 'healthcheck'@'$host' IDENTIFIED BY '$health_password';"
        statement "GRANT USAGE ON *.* TO 'healthcheck'@'$host';"
    done
    if [ -n "$database" ]; then statement "CREATE DATABASE IF NOT EXISTS \`$(sql_name "$database")\`;"; fi
    if [ -n "$user" ]; then
        statement "CREATE USER '$(sql_text "$user")'@'%' IDENTIFIED BY '$(sql_text "$password")';"
        if [ -n "$database" ]; then
            # In a database name of a GRANT, _ and % are patterns.
            pattern=$(sql_name "$database" | sed 's/[_%]/\\&/g')
            statement "GRANT ALL ON \`$pattern\`.* TO '$(sql_text "$user")'@'%';"
        fi
    fi
    host=$(sql_text "${root_host:-%}")
    if [ "$host" != localhost ]; then
        statement "CREATE USER 'root'@'$host' IDENTIFIED BY '$secret';"
        statement "GRANT ALL ON *.* TO 'root'@'$host' WITH GRANT OPTION;"
    fi
    statement "ALTER USER 'root'@'localhost' IDENTIFIED BY '$secret';"
}

as_root() { MYSQL_PWD=${root_password_now-} mariadb --protocol=socket --socket="$socket" --user=root "$@"; }

start_private_server() {
    "$@" --skip-networking --socket="$socket" --pid-file=/run/mysqld/private.pid &
    server=$!
    tries=0
    until as_root -e 'SELECT 1' >/dev/null 2>&1; do
        kill -0 "$server" 2>/dev/null || fail "the server ended while it was being initialised"
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || fail "the server did not answer within 60 seconds"
        sleep 0.2
    done
}

stop_private_server() {
    kill -TERM "$server"
    wait "$server" || fail "the server did not stop in order after initialisation"
}

run_init_files() {
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
        *.sh) note "running $file"; if [ -x "$file" ]; then "$file"; else sh "$file"; fi ;;
        *.sql) note "running $file"; as_root ${database:+--database="$database"} <"$file" ;;
        *.sql.gz) note "running $file"; gzip -dc "$file" | as_root ${database:+--database="$database"} ;;
        *'/*') ;;
        *) note "ignoring $file" ;;
        esac
    done
}

initialise() {
    read_settings
    note "initialising the database"
    : >"$marker"
    mariadb-install-db --datadir="$datadir" --auth-root-authentication-method=normal --skip-test-db \
        --default-time-zone=SYSTEM --skip-log-bin >/dev/null
    start_private_server "$@"
    accounts | as_root
    root_password_now=$root_password
    run_init_files
    stop_private_server
    sync
    rm -f "$marker"
    note "initialised; ready for start-up"
}

# Everything but the mount point itself.
empty_datadir() { find "$datadir" -mindepth 1 -delete; }

case ${1-} in
-*) set -- mariadbd "$@" ;;
mysqld) shift; set -- mariadbd "$@" ;;
esac

if [ "${1-}" = mariadbd ]; then
    if [ "$(id -u)" = 0 ]; then
        find "$datadir" /run/mysqld \! -user mysql -exec chown mysql:mysql {} +
        exec setpriv --reuid=mysql --regid=mysql --init-groups -- "$0" "$@"
    fi
    if [ -e "$marker" ]; then
        note "an earlier initialisation was cut off; beginning anew"
        empty_datadir
    fi
    if [ -d "$datadir/mysql" ]; then
        if [ -n "${MARIADB_AUTO_UPGRADE-}" ]; then note "warning: MARIADB_AUTO_UPGRADE is not honoured by this stand-in"; fi
    else
        initialise "$@"
    fi
fi
exec "$@"
