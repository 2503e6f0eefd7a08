-- How long a lapsed hold still counts, and how long an event that was seen is remembered.
local DAY_MS = 86400000
