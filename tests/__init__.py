"""The tests. snapshot.py writes the models that they run on."""
