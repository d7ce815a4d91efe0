"""How a metric that counts words takes a text apart."""
