"""Looking at results: contact sheets."""
