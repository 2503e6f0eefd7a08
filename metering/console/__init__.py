"""What commands share: connections, output, errors, roles, stopping."""
