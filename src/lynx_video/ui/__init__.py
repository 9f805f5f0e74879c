"""The page: a portrait is dropped, a sentence is typed, a clip comes out. Gradio draws it; what happens is in plain functions."""
