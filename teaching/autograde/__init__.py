"""What make release and make grade are made of."""
