"""Words and files as nobody means them: whatever comes, a run starts or one line says why not."""
