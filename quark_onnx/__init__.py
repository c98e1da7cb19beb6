"""placeholder, the lead writes this file."""
