"""The original code's ways in: its torch.hub entries and its evaluation command."""
