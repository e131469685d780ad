"""What the agent keeps on disk: the record, models and downloads, earlier races, and whom a disk refuses."""
