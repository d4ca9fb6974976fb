"""A local page to look into a trained model: what it asks and what it is answered, its markup, and the server of both."""
