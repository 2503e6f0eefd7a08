-- Run once by the Postgres image, as superuser in the new database, when it finds its volume empty.
-- One role owns the tables and migrates them. The other is what the product works as; the first migration gives it its rights.
-- Neither may make roles or databases.
\getenv owner_password POSTGRES_OWNER_PASSWORD
\getenv app_password POSTGRES_APP_PASSWORD
BEGIN;
CREATE ROLE metering_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE metering_app LOGIN PASSWORD :'app_password';
ALTER DATABASE :"DBNAME" OWNER TO metering_owner;
COMMIT;
