"""Files at any URI, and the folders that jobs leave behind."""
