"""The main job: `speechclip-plus quickstart`."""
