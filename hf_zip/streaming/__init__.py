"""Merges that read parameters from files and write them by and by: no model is held in memory."""
