"""Reading Hugging Face's `config.json` files: shapes, attention of each layer, element types, whatever the family."""
