"""Every lemma the package stands on, checked three ways: exact identity, random property, and a control that must fail."""
