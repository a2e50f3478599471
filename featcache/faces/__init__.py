"""Face matching: from images to pairs of people, told apart by the vectors of a store."""
