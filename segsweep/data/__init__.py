"""From files to batches on the device: sources → store → split → labels → batches."""
