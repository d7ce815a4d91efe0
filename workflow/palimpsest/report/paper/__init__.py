"""What is taken into a paper: tables, the methods paragraph, licences and references."""
