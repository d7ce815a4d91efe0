"""The page to look at: `index.html`, and what stands behind its cells."""
