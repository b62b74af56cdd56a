"""The names that recipes are written against: nemotron.kit, nemotron.recipes, nemotron.data_prep."""
