"""The pack actors of a search: who is up, what each of them holds, who takes the place of one that was lost."""
