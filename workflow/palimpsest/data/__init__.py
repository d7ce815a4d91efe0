"""Publishers' files -> examples -> Arrow shards. Knows no model."""
