"""Who is to be forgotten, and what tells who somebody is."""
