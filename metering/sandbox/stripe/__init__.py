"""A stand-in for Stripe, for the demo and the tests: its own HTTP server, that the real `stripe` SDK talks to. It is not Stripe.

`sandbox.StripeSandbox` is the way in, `sandbox.serve` runs one as a process of its own.
"""
