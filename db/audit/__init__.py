"""The audit: every invariant over the whole ledger, over what changed, and its passes."""
