"""From files to batches on the device: datasets → scan → split → store → batches."""
