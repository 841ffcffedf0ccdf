"""An app in the browser: hide a part of a picture, and step through the descent that fills it in (extra `app`)."""
