import unicodedata
from pathlib import Path, PurePosixPath

import pytest

from darkroom.data.captions import Caption, CaptionFinder, read_metadata, without_subject

ALL = ("text_file", "metadata", "folder")


def tree(root: Path, texts: dict[str, str | bytes]) -> list[PurePosixPath]:
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return [PurePosixPath(name) for name in sorted(texts)]


def finder(root: Path, texts: dict[str, str | bytes], sources: tuple[str, ...] = ALL, template: str = "a cat") -> CaptionFinder:
    return CaptionFinder(root, tree(root, texts), sources=sources, template=template)


def find(root: Path, texts: dict[str, str | bytes], photo: str, sources: tuple[str, ...] = ALL, template: str = "a cat") -> Caption:
    return finder(root, texts, sources, template).find(PurePosixPath(photo))


EVERYWHERE: dict[str, str | bytes] = {
    "sleepy_cats/a.txt": "from the text file",
    "sleepy_cats/metadata.jsonl": '{"file_name": "a.jpg", "text": "from the table"}',
}


@pytest.mark.parametrize(
    ("sources", "text", "source"),
    [
        (("text_file", "metadata", "folder"), "from the text file", "text_file"),
        (("metadata", "text_file"), "from the table", "metadata"),
        (("folder", "text_file"), "sleepy cats", "folder"),
        ((), "a cat", "template"),
    ],
)
def test_the_first_source_that_has_a_caption_wins(tmp_path, sources, text, source):
    caption = find(tmp_path, EVERYWHERE, "sleepy_cats/a.jpg", sources)
    assert (caption.text, caption.source) == (text, source)


def test_an_empty_text_is_no_caption(tmp_path):
    texts: dict[str, str | bytes] = {"a.txt": " \n", "metadata.csv": 'file_name,text\na.jpg,""\n'}
    assert find(tmp_path, texts, "a.jpg") == Caption("a cat", "template")


def test_a_caption_is_one_line_of_single_spaces(tmp_path):
    assert find(tmp_path, {"a.txt": "\ufeffa  black\ncat \r\n"}, "a.jpg").text == "a black cat"


def test_a_text_file_belongs_to_the_whole_name_up_to_the_suffix(tmp_path):
    assert find(tmp_path, {"my.best.txt": "yes", "my.txt": "no"}, "my.best.jpeg").text == "yes"


def test_a_text_file_that_is_not_utf8_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"sub/a\.txt is not UTF-8"):
        find(tmp_path, {"sub/a.txt": b"caf\xe9"}, "sub/a.jpg")


def test_folder_names_caption_only_photos_in_folders(tmp_path):
    assert find(tmp_path, {}, "a.jpg").source == "template"
    assert find(tmp_path, {}, "x/maine_coon/a.jpg") == Caption("maine coon", "folder")


def test_the_template_knows_folder_and_stem(tmp_path):
    template = "{stem}, a photo of {folder}"
    assert find(tmp_path, {}, "maine_coon/tom_1.jpg", (), template).text == "tom 1, a photo of maine coon"
    assert find(tmp_path, {}, "tom.jpg", (), template).text == "tom, a photo of"


def test_the_template_knows_what_was_found_or_a_word_for_it(tmp_path):
    captions = finder(tmp_path, {}, template="a photo of a {subject:cat}, {subject:animal}")
    assert captions.find(PurePosixPath("tom.jpg"), "tabby").text == "a photo of a tabby, tabby"
    assert captions.find(PurePosixPath("tom.jpg")).text == "a photo of a cat, animal"


@pytest.mark.parametrize(
    ("template", "without"),
    [
        ("a {subject:cat} by {stem}, {subject:big cat}", "a cat by {stem}, big cat"),
        ("{{{subject:cat}}}", "{{cat}}"),
        ("{{subject:cat}}", "{{subject:cat}}"),
        ("a cat", "a cat"),
    ],
)
def test_a_template_without_the_subject_says_what_it_says_where_none_is_found(template, without):
    assert without_subject(template) == without


@pytest.mark.parametrize("template", ["{breed}", "{0}", "{", "{stem.name}", "{stem:q}", "{subject}"])
def test_a_template_with_anything_else_is_refused(tmp_path, template):
    with pytest.raises(
        ValueError,
        match=r"ingest\.caption_template .* is invalid .*Only \{folder\}, \{stem\} and \{subject:WORD\} may stand in braces; .*\{\{ or",
    ):
        finder(tmp_path, {}, template=template)


def test_jsonl_and_csv_keep_further_columns_as_attributes(tmp_path):
    jsonl = '{"file_name": "a.jpg", "text": "a cat", "age": 3, "tags": ["x"]}\n\n{"file_name": "sub/b.jpg", "text": "a dog"}\n'
    csv = 'file_name,text,breed\nb.jpg,"a black, fat cat",Bengal\n'
    captions = finder(tmp_path, {"one/metadata.jsonl": jsonl, "two/metadata.csv": csv})
    assert captions.find(PurePosixPath("one/a.jpg")) == Caption("a cat", "metadata", {"age": 3, "tags": ["x"]})
    assert captions.find(PurePosixPath("one/sub/b.jpg")) == Caption("a dog", "metadata")
    assert captions.find(PurePosixPath("two/b.jpg")) == Caption("a black, fat cat", "metadata", {"breed": "Bengal"})


def test_attributes_stay_when_the_caption_comes_from_elsewhere(tmp_path):
    texts: dict[str, str | bytes] = {"a.txt": "a cat", "metadata.csv": "file_name,breed\na.jpg,Bengal\n"}
    assert find(tmp_path, texts, "a.jpg") == Caption("a cat", "text_file", {"breed": "Bengal"})


def test_the_table_nearest_to_the_photo_wins_and_jsonl_before_csv(tmp_path):
    texts: dict[str, str | bytes] = {
        "metadata.jsonl": '{"file_name": "sub/a.jpg", "text": "far"}\n{"file_name": "b.jpg", "text": "jsonl"}',
        "metadata.csv": "file_name,text\nb.jpg,csv\n",
        "sub/metadata.csv": "file_name,text\na.jpg,near\n",
    }
    captions = finder(tmp_path, texts)
    assert captions.find(PurePosixPath("sub/a.jpg")).text == "near"
    assert captions.find(PurePosixPath("b.jpg")).text == "jsonl"


def test_tables_from_windows_and_macos_find_their_photos(tmp_path):
    decomposed = unicodedata.normalize("NFD", "sub/café.jpg")
    captions = finder(tmp_path, {"metadata.csv": "\ufefffile_name,text\r\nsub\\café.jpg,a cat\r\n"})
    assert captions.find(PurePosixPath(decomposed)).text == "a cat"


def test_lines_that_name_no_photo_are_told(tmp_path):
    captions = finder(tmp_path, {"sub/metadata.csv": "file_name,text\na.jpg,one\nb.jpg,two\n"})
    captions.find(PurePosixPath("sub/a.jpg"))
    assert captions.rows_without_photo == ["sub/metadata.csv, line 3: sub/b.jpg"]


def test_metadata_is_not_read_when_it_is_no_source(tmp_path):
    assert find(tmp_path, {"metadata.jsonl": "not json"}, "a.jpg", ("text_file",)).text == "a cat"


GOOD = '{"file_name": "a.jpg", "text": "a cat"}\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.jsonl", GOOD + '{"file_name": "b.jpg", "text"}', "line 2 is not valid JSON"),
        ("metadata.jsonl", GOOD + '{"file_name": "b.jpg", "age": NaN}', "line 2 is not valid JSON: NaN is not a JSON value"),
        ("metadata.jsonl", GOOD + r'{"file_name": "b.jpg", "text": "\ud800"}', "line 2 is not valid JSON: .*surrogates"),
        ("metadata.jsonl", GOOD + '["b.jpg", "a cat"]', "line 2 must be an object"),
        ("metadata.jsonl", GOOD + '{"image": "b.jpg"}', r"line 2 has no `file_name` \(columns: image\)"),
        ("metadata.jsonl", GOOD + '{"file_name": 7}', "line 2 has no `file_name`"),
        ("metadata.jsonl", GOOD + '{"file_name": "b.jpg", "text": 7}', "line 2: `text` must be a string, got 7"),
        ("metadata.jsonl", GOOD + GOOD, r"line 2 names a\.jpg again \(sub/metadata\.jsonl, line 1\)"),
        ("metadata.jsonl", b"caf\xe9", "is not UTF-8 text"),
        ("metadata.csv", "file_name;text\na.jpg;a cat\n", r"line 2 has no `file_name` \(columns: file_name;text\)"),
        ("metadata.csv", "file_name,text\na.jpg,a fat, black cat\n", r"line 2 does not have 2 columns \(file_name, text\); quote"),
        ("metadata.csv", "file_name,text\na.jpg\n", "line 2 does not have 2 columns"),
        ("metadata.csv", 'file_name,text\na.jpg,"a cat\n', "line 2 is not valid CSV"),
    ],
)
def test_a_malformed_line_is_an_error_that_names_file_and_line(tmp_path, name, text, message):
    tree(tmp_path, {f"sub/{name}": text})
    with pytest.raises(ValueError, match=rf"{tmp_path}/sub/{name}.*{message}"):
        read_metadata(tmp_path, PurePosixPath("sub") / name)


def test_an_unknown_source_is_our_own_mistake(tmp_path):
    with pytest.raises(AssertionError, match="unknown caption source moon"):
        find(tmp_path, {}, "a.jpg", ("moon",))
