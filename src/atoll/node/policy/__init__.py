"""What a site allows and what it has given: its steward's rules, prices and ledger."""
