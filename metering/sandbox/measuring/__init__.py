"""Measuring the product, and in the same run and on the same servers what it is to be compared with (`metering bench`)."""
