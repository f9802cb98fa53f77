"""Text preparation before tokenizing."""
