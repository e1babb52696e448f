"""What left the house: an audit log of every answer of a site, which nobody changes unnoticed."""
