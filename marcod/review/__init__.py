"""Review of drops by people: query strategies, the queue of items, random audits, and folders to fill in elsewhere."""
