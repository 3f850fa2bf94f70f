"""The official code's interfaces: its torch.hub entries and its evaluation command."""
