-- Lua as Redis and Valkey run it: 5.1, with their own globals, without the world outside.
std = "lua51"
read_globals = {"redis", "KEYS", "ARGV", "cjson", "cmsgpack", "struct", "bit"}
not_globals = {
    "arg", "debug", "dofile", "getfenv", "io", "loadfile", "module", "newproxy", "os", "package", "print", "require", "setfenv",
}
max_line_length = 130
