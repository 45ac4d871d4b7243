import pytest

from remembrandt.configuration import dump_config, parse_config
from remembrandt.databases.bm25 import Bm25Config, Bm25Info, open_bm25
from remembrandt.errors import ConfigError, SearchError

URL = "https://painter:s3cret@search.example:9200/elastic"


def test_secrets_are_in_no_dump_and_no_representation():
    config = Bm25Config(url=URL, api_key="secret-key")

    for shown in (dump_config(config), repr(config), str(config.model_dump()), config.model_dump_json()):
        assert "s3cret" not in shown
        assert "secret-key" not in shown


def test_credentials_are_taken_out_of_the_url():
    config = Bm25Config(url=URL)

    assert config.url == "https://search.example:9200/elastic"
    assert config.username == "painter"
    assert config.password.get_secret_value() == "s3cret"


def test_the_environment_names_the_cluster_where_the_configuration_does_not(monkeypatch):
    monkeypatch.setenv("ELASTICSEARCH_URL", URL)

    assert Bm25Config().resolved_url() == "https://search.example:9200/elastic"
    assert Bm25Config(url="http://other:9200").resolved_url() == "http://other:9200"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backend": "lucene"}, "backend"),
        ({"shards": 0}, "shards must be 'auto' or at least 1"),
        ({"bulk_thread": 2}, "did you mean 'bulk_threads'"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(Bm25Config, values, "build.yaml")

    assert "\n" not in str(caught.value)


def test_an_index_of_an_unknown_backend_is_refused(tmp_path):
    with pytest.raises(SearchError, match="backend 'lucene' is unknown here"):
        open_bm25(Bm25Info("lucene", "standard", 1.2, 0.75, 1), tmp_path, None)
