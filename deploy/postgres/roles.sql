-- Run once by the Postgres image, as superuser in the new database, when it finds its volume empty. To be run again by hand, with
-- the same variables, where a newer version has more roles or passwords are to change: docs/how-to/operations.md says how.
-- One role owns the tables and migrates them. The others are what the product works as; migrations give them their rights.
-- None may make roles or databases.
\getenv owner_password POSTGRES_OWNER_PASSWORD
\getenv app_password POSTGRES_APP_PASSWORD
\getenv meter_password METER_PASSWORD
\getenv api_password API_PASSWORD
\getenv jobs_password JOBS_PASSWORD
BEGIN;
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
GRANT metering_app, metering_meter, metering_api, metering_jobs TO metering_owner WITH INHERIT TRUE, SET FALSE;
ALTER DATABASE :"DBNAME" OWNER TO metering_owner;
COMMIT;
