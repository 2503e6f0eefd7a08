"""What moves a balance by calls and by hand: debits, balances, adjustments, rejected events, prices."""
