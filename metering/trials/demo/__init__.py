"""The demo: everything on embedded servers, with a live table and an audit at the end."""
