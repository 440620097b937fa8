-- Imported certificates may have names that are not issued here. They are kept, and nothing is renewed or replaced until
-- an operator edits the names. The grammar of names is in the model crate, so the application sets the column.
ALTER TABLE certificates ADD COLUMN names_certifiable boolean NOT NULL DEFAULT true;
