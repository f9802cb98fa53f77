"""The rows that each rank was trained on, and the audit that compares them with the order."""
