"""One model behind every door: what is asked, what is checked, the clip that is made, and the file that is published."""
