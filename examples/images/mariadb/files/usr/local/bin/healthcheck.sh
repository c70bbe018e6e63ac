#!/bin/sh
# Says by its exit code whether every named condition holds: 0 yes, 1 no, 2 a condition that is unknown here.
set -u

query() {
    mariadb --defaults-extra-file=/var/lib/mysql/.my-healthcheck.cnf --protocol=tcp --host=127.0.0.1 \
        --skip-column-names --batch --execute="$1" 2>&1
}

# Over TCP: during initialisation only the socket answers, and that is not ready.
connect() { [ "$(query 'SELECT 1')" = 1 ]; }
innodb_initialized() {
    [ "$(query "SELECT 1 FROM information_schema.engines WHERE engine = 'InnoDB' AND support IN ('YES', 'DEFAULT', 'ENABLED')")" = 1 ]
}

[ $# -gt 0 ] || { echo "healthcheck.sh: no condition given" >&2; exit 2; }
for condition; do
    case $condition in
    --connect) connect ;;
    --innodb_initialized) innodb_initialized ;;
    *) echo "healthcheck.sh: $condition is not known to this stand-in" >&2; exit 2 ;;
    esac || { echo "healthcheck ${condition#--} failed" >&2; exit 1; }
done
