-- Run once by the Postgres image, as superuser in the new database, when it finds its volume empty. To be run again by hand, with
-- the same passwords, where a newer version has more roles or passwords are to change: docs/how-to/operations.md says how.
-- One role owns the tables and migrates them. The others are what the product works as; migrations give them their rights.
-- None may make roles or databases.
-- Passwords come from variables or, where one is unset, from files.
\set ON_ERROR_STOP on
\set owner_password `printf %s "${POSTGRES_OWNER_PASSWORD:-$(cat "${SECRETS_DIRECTORY:-/run/secrets}"/owner_password)}"`
\set app_password `printf %s "${POSTGRES_APP_PASSWORD:-$(cat "${SECRETS_DIRECTORY:-/run/secrets}"/app_password)}"`
\set meter_password `printf %s "${METER_PASSWORD:-$(cat "${SECRETS_DIRECTORY:-/run/secrets}"/meter_password)}"`
\set api_password `printf %s "${API_PASSWORD:-$(cat "${SECRETS_DIRECTORY:-/run/secrets}"/api_password)}"`
\set jobs_password `printf %s "${JOBS_PASSWORD:-$(cat "${SECRETS_DIRECTORY:-/run/secrets}"/jobs_password)}"`
BEGIN;
SELECT 1 / (:'owner_password' <> '' AND :'app_password' <> '' AND :'meter_password' <> '' AND :'api_password' <> ''
    AND :'jobs_password' <> '')::int AS every_password_is_there
\gset
SELECT format('CREATE ROLE %I LOGIN', wanted) FROM unnest(ARRAY[
    'metering_owner', 'metering_app', 'metering_meter', 'metering_api', 'metering_jobs'
]) AS wanted WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted)
\gexec
ALTER ROLE metering_owner PASSWORD :'owner_password';
ALTER ROLE metering_app PASSWORD :'app_password';
ALTER ROLE metering_meter PASSWORD :'meter_password';
ALTER ROLE metering_api PASSWORD :'api_password';
ALTER ROLE metering_jobs PASSWORD :'jobs_password';
-- So that a function of the owner's may end a stopped process's session: it can't act as them.
SELECT 'GRANT metering_app, metering_meter, metering_api, metering_jobs TO metering_owner'
    -- 15 has no word for it: there, who may act for them may also become them.
    || CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN ' WITH INHERIT TRUE, SET FALSE' ELSE '' END
\gexec
ALTER DATABASE :"DBNAME" OWNER TO metering_owner;
COMMIT;
