"""What the commands take, and how that is explained: settings, help, completion. Nothing here imports torch."""
