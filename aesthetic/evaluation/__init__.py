"""What an aesthetic does to images: similarity and score with intervals, tables and plots."""
