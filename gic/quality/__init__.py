"""Quality of pictures: metrics, terms of the loss, the discriminator, and where their weights come from."""
