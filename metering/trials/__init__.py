"""Programs that put the product on trial: demo, chaos, bench, and what they share."""
