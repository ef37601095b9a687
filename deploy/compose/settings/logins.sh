#!/bin/sh
# Run once by the image of PostgreSQL when it makes the database: the roles and the login of the programs.
# covariance_app may not change the audit trail; the migrations give it its rights.
set -eu
psql --quiet --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" \
    --set=password="$(cat /run/secrets/postgres_app)" <<'SQL'
CREATE ROLE covariance_app NOLOGIN;
CREATE ROLE covariance_read NOLOGIN;
CREATE ROLE covariance_login LOGIN PASSWORD :'password' IN ROLE covariance_app;
SQL
