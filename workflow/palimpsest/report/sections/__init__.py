"""What a report tells: a module a section, with its numbers, tables and sentences."""
