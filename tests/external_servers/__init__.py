"""Servers as others run them: on TCP, from any binary, with Sentinel, a pooler or TLS in between."""
